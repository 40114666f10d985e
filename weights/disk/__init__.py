"""Files on disk: JSON as data, safetensors with their variants and shards, and what is written whole or not at all.
Whatever cannot be read is a CheckpointError that names the file.
"""
