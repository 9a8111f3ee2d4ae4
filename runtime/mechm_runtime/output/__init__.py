"""Writes an `Analysis` for people and programs: terminal table, files and HTML report."""
