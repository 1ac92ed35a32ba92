"""One file a subcommand of dsmoe: its options, and what it does with them."""
