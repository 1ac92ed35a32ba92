"""Modules of this folder import DeepSpeed, so it is made importable before they are collected."""

from support import patched

patched.importable()
