"""What roles install: released programs, environments, sources, packages."""
