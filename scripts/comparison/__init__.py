"""What scripts/compare.py is made of: cases (what is compared), blocks (how), report (how it is shown)."""
