"""Where bytes live: files that are read by range, and folders that appear whole or not at all."""
