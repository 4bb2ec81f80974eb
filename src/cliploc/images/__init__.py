"""Pictures: reading, geometry, run lengths, polygons, pictures as prompts."""
