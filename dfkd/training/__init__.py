"""What every training here shares: exact resume, augmentation, optimiser and progress; and the teacher's own."""
