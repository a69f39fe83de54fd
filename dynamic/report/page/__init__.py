"""The report of a bundle as one page of HTML that loads nothing from elsewhere."""
