"""Engines that skip, run or repeat layers per sequence."""
