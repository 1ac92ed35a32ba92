"""What a step multiplies, moves and sends, and what a process holds; price.py has the seconds."""
