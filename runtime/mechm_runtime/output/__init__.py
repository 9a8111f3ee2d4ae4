"""An `Analysis` for people and programs: table, files and the HTML report."""
