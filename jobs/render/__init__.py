"""The generated catalog: what is sold (catalog, products), how it looks (geometry, wear, goods, paint), how it is seen
(studio, scenes with grounds and camera), and how it is handed over (feed with outfits and faults)."""
