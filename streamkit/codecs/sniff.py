"""What a file that is not what it should be really is, by its first bytes.

>>> looks_like(b"<!DOCTYPE html><html>")
'looks like HTML: failed download?'
"""

from __future__ import annotations


def looks_like(head: bytes) -> str | None:
    """A reason for the usual accidents; None when nothing is recognised."""
    start = head.lstrip().lower()
    if not head:
        return "empty file"
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "looks like HTML: failed download?"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer: run `git lfs pull`"
    return None if any(head) else "holds only zero bytes"
