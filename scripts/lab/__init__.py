"""What scripts/sampler_lab.py is made of beside itself: its plots and its page."""
