"""The bundled group: its tasks as lm-eval reads them, and their rows."""
