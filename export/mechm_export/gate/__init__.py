"""The quality gate: values and answers against torch (`comparison`), and what happens to which precision (`judge`)."""
