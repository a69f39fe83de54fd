"""Small files: shared values, Huffman codes, half precision."""
