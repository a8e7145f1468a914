"""Images in files and folders: metadata < decoding; folders."""
