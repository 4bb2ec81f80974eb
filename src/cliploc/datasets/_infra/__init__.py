"""What every reader stands on; no reader is known here."""
