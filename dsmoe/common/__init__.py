"""What every command uses: errors and exit codes, files, output, places."""
