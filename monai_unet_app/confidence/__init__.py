"""What a bundle states about its own results: intervals, a quality gate, a shift detector, and whether they came true."""
