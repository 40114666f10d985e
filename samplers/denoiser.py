"""From a network that predicts noise, velocity or the picture to denoise(x, sigma) = x0. It is part of basics.py."""

from .basics import Denoise, Denoiser, denoiser

__all__ = ["Denoise", "Denoiser", "denoiser"]
