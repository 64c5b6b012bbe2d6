"""The harness draws images with and without CR-Diff, scores and reports. Never part of a WebUI."""
