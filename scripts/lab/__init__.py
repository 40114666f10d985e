"""What scripts/sampler_lab.py is made of: a mixture to sample from, measurement, plots and the page."""
