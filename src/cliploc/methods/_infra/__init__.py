"""Code that several methods share: registration, gradients for all prompts at once, masked forward passes."""
