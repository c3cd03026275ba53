"""Results compared: leaderboard, runs on labelled videos, ablations, scoring steps; see README.md."""
