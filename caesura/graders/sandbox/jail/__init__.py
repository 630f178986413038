"""What runs inside the sandbox. Standard library only: the text of these modules is handed to a bare interpreter."""
