"""What a SALMONN `.pth` holds, said in our terms."""
