"""What the methods share: registration, gradients for all prompts at once, masked forwards."""
