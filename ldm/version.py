"""The version of this code, for `ldm --version` and for the record of a picture."""

from pathlib import Path

DISTRIBUTION = "latent-diffusion-reference"  # the name that pip installs


def version() -> str:
    """For example "0.1.0". Of a checkout it is what its pyproject.toml says, whatever else is installed; elsewhere it
    is that of the installed distribution, or "unknown" if the packages were only copied."""
    import tomllib  # here and below, so that the command starts before them
    from importlib import metadata

    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == DISTRIBUTION:
            return project["version"]
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"
