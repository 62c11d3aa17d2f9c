"""Network traffic: captures and flow tables in, flows as parameters, captures out."""
