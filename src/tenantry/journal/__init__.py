"""What happened: sealed entries at gapless log positions, written before the effect."""
