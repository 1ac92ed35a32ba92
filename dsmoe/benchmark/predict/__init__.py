"""The time of a case before anything starts: a sum of named parts, from a table of rates."""
