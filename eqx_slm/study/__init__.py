"""Matched pairs: named arms, runs, statistics, report.

Importing this package loads nothing heavy; its parts load what they need.
"""
