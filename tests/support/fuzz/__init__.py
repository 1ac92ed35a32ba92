"""The fuzzer: command lines from the parsers, bad files, and a child process that is watched."""
