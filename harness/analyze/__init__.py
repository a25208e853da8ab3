"""What attention does and costs, beside runs: where probability goes, schedules of a decode step, crossing lengths."""
