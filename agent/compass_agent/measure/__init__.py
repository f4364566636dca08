"""Measuring this machine: operators, links, load; and the accuracy of configs."""
