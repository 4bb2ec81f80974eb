"""What a folder and its reviewed pictures teach: better drafts for the others."""
