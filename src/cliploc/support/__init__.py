"""What any part needs: files, documents, late imports, processes, progress."""
