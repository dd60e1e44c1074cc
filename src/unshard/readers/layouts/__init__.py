"""One module per layout: it finds candidates in a folder by their names, and opens one of them."""
