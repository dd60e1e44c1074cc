"""From numbers to places, sizes and steps of colour. Nothing here knows how a page is written."""
