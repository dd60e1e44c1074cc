"""Checks: small and independent, each a function that returns findings and touches no tensor byte.

completeness       every file, rank, byte range and row that a step of training should have
places             something like a tensor lies where the metadata says
inference_files    configuration and tokenizer, which no tensor can replace
"""
