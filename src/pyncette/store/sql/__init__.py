"""The code that the stores in SQL databases share. It knows no dialect and no driver."""
