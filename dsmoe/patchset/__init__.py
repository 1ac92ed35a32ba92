"""Applying, checking, reverting and exporting the patch series on one pinned DeepSpeed.

The result of a series is a function of the base tree, the diffs and the overlay files: it is
built in git's object database first, compared with the ids locked beside the base, and only then
moved into the work tree. HEAD never moves. docs/reference/applying.md is the manual.
"""
