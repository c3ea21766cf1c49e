// Runs before the first paint, so that a chosen theme does not flash.
(function () {
  var chosen = null;
  try { chosen = localStorage.getItem("metainit-theme"); } catch (error) { chosen = null; }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
