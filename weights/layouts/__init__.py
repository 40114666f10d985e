"""The layouts in which models are published. One room each: it matches a path, reads it, and writes such a path.

diffusers     a folder, a network in each sub-folder; with diffusers_configs (the settings of a network) and
              diffusers_scheduler (how it was trained)
single_file   all networks in one .safetensors file, as ldm and sgm have it; with shapes (sizes without a config.json),
              training (what tells special models from plain ones) and overrides (what shapes cannot say)
one_network   a network by itself: a folder with its config.json, or a file with just its tensors
names         pure renaming: where a parameter lies in each of them
"""
