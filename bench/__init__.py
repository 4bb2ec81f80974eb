"""What things cost: nothing here is a test, and nothing here is installed."""
