"""Small files that change a model: `lora` merges or attaches them, `deltas` has the kinds of change."""
