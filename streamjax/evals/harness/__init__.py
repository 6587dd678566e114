"""How a model is asked a benchmark's questions, and how results are kept, scored and compared."""
