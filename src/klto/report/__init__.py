"""Writers: terminal, JSON, SARIF, JUnit."""
