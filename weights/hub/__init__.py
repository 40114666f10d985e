"""Models from the hub: what is downloaded, and which files of a repository are wanted."""
