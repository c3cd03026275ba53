"""Official data set trees -> videos.csv, leak-free folds, and a health report; see README.md here."""
