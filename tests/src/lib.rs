//! What the whole-program tests share.
<<<<<<< HEAD
pub mod enumerate;
pub mod invariants;
pub mod model;
pub mod scene;
=======
pub mod images;
>>>>>>> engine
