"""The rooms of txt2img.py: what is asked for, what can be drawn, prompts in files, sweeps, previews, reports."""
